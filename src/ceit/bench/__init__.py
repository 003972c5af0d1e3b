"""What ``ceit benchmark`` measures: ``arms`` on their ``backends``, by ``measure`` in a ``worker`` process for each."""
