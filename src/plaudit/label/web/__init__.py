"""The pages and the HTTP interface of the labelling service, and the server that listens for them."""
