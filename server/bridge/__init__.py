"""Between the gRPC process and the engine process: jobs out, vectors back, through shared memory."""
