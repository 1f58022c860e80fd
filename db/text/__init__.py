"""Text from outside, made safe for log lines and terminals.

Any module may import it; it imports nothing of this project.
Code that knows a session, a job or a command does not belong here.
"""
