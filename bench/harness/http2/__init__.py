"""A cheap gRPC client over HTTP/2 by hand, which makes load on a server that runs on the same cores.

``load.py`` is what a benchmark uses; the rest runs in the generator's own process and imports neither grpc nor numpy.
"""
