"""A picture in the browser, its answers beside it: the page of ``ceit web`` and its JSON API, for this machine.

``guard`` lets a request in or refuses it, ``api`` takes bytes, ``page`` has the controls, ``answers`` asks the models
and says what is shown.
"""
