"""The pure core: no sockets, files, clock, threads or randomness. Time and random numbers are parameters."""
