"""HOW it fits: pure functions over facts, and one probe of the machine. It must not know the network or the disk."""
