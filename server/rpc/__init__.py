"""The only room of the server that knows grpc and proto: convert, call, convert."""
