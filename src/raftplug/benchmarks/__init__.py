"""What `raftplug bench` measures; each module is one level, and needs nothing that the package does not have."""
