"""A diagonal SSM over a sequence, from the parameters of the continuous system."""
