"""Renders a field in the browser, also while it trains, and edits camera paths there."""
