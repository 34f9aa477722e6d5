"""What all routes share: the service and its refusals, the gate, the pages, and processes beside it."""
