"""From a source to a destination, in constant memory.

source       where the bytes come from, and how a broken source is picked up where it broke
destination  where they go: a multipart upload or a raw body
pipe         the transfer itself, and its report
memory       what the process holds, for the report
"""
