"""The data path of one pair: a thread that moves records between the journal and a TLS connection.

wire.py         frames and their bytes
connection.py   a non-blocking TLS connection: queues out, whole frames in
groupfiles.py   page, journal and doorbells of the group
shipper.py      journal -> frames
receiver.py     frames -> journal, and what to acknowledge
asker.py        a thread for questions to the target, which may take long
flow.py         carries out the session's effects on the data path
claims.py       which pair of a group may append to its journal here
loop.py         the thread: poll, read, write, tick
"""
