"""A field in the browser, also while it is trained."""
