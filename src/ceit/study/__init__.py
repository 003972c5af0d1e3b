"""Results as data: what was measured lies in committed files, and tables are made from them."""
