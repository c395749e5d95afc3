"""The daemon: HTTP on a socket, slots, blobs, tasks and policy; standard library, h11 and psutil only."""
