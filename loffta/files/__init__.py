"""Files that last, and files that strangers wrote: durable writing, bounded reading, and errors of either in words."""
