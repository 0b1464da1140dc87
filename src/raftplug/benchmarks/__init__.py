"""What `raftplug bench` measures; each level is one module, and only the peers need what the package does not have."""
