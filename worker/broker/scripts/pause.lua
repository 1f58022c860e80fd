-- Write or delete the copy of a queue's pause, and wake the workers of the queue.
--
-- KEYS[1]  the queue
-- ARGV[1]  channel that wakes idle workers     ARGV[2]  the copy, '' to delete it
-- ARGV[3]  the end of the pause in ms since the epoch, '' if it has none
local paused, copy, ends = KEYS[1] .. ':paused', ARGV[2], ARGV[3]
if copy == '' then redis.call('DEL', paused)
elseif ends == '' then redis.call('SET', paused, copy)
else redis.call('SET', paused, copy, 'PXAT', ends) end
redis.call('PUBLISH', ARGV[1], '1')
