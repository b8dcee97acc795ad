"""The upstream's side.

outgoing    what is asked of it, and what its failures mean to the reader
exchange    its answer passed on as it comes, where it is not kept
headers     which fields go on, in either direction
"""
