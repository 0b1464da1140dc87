"""For tests of plugins and of raftplug itself: the simulator, and the checker of the histories that it leaves."""
