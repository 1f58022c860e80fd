-- Read the clock of the server that holds the queue.
--
-- KEYS[1]  the queue
-- Returns the time in microseconds since the epoch.
local time = redis.call('TIME')
return time[1] * 1000000 + time[2]
