"""What a process runs on and where its lines go: device, threads, memory, quota, signals, streams, terminal."""
