"""One directory per training: its files, what they say, who writes there, and which images it knows."""
