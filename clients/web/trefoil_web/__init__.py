"""The playground: static files that the API serves as they are. No build step, no request to another host."""
