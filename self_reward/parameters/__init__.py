"""Every parameter of every stage, declared once.

settings.py: groups that library functions take whole; stages.py: a class per stage, made of groups; flat.py: the flat
names outside; sources.py: flags, file and environment to one checked object; checks.py: contradictions; generated.py:
docs, Argo, Helm.
"""
