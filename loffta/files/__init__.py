"""Files that last, and files that strangers wrote: durable writing, bounded reading, and errors of either in words.

In:  bytes and paths.   Out: files that are there whole or not at all; values, or errors that say what to do. Called by
every wing that reads or writes.
"""
