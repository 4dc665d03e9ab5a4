"""The embedded host: runs TLLM with no other codebase, and shows what the hosts' contract is."""
