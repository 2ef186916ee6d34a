"""What a process runs on and where its lines go: device, threads, memory, quota, signals, streams, terminal.

In:  the system, its environment and its limits.   Out: numbers, a StopFlag, lines that fit. Called by every stage and
by the commands.
"""
