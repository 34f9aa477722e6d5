"""What a reply earns: contracts, saved and foreign reward models, functions, endpoints, and their weighted sum."""
