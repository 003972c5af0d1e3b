"""A folder that classifies images in a browser, offline."""
