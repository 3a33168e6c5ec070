from self_reward.parameters.generated import main

if __name__ == "__main__":
    main()
