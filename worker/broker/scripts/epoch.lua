-- Complete an epoch: all jobs that Redis had lost when it began are in the queue again.
--
-- KEYS[1]  the queue
-- ARGV[1]  the epoch's key     ARGV[2]  epoch     ARGV[3]  the prefix of an epoch that is not complete yet
-- Returns 1, or 0 if Redis has lost its data again meanwhile.
local key, epoch, begun = ARGV[1], ARGV[2], ARGV[3]
local current = redis.call('GET', key)
if current == begun .. epoch then redis.call('SET', key, epoch) end
return (current == epoch or current == begun .. epoch) and 1 or 0
