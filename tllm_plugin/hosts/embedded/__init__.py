"""The embedded host: runs TLLM without another codebase, and serves as a model of the hosts' contract."""
