"""The journal of a group: a ring of records, and the page of counters its two processes share."""
