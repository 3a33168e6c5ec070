"""What the pods of a run need, compared with what the cluster has.

A pod that needs something missing waits forever without an error, or fails hours later. check.py asks the API server
by way of api.py; the other modules are pure functions of objects as Kubernetes gives them in JSON. What the service
account may not read is reported as a note and not as a problem.
"""
