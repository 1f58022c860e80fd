-- Complete an epoch: all that Redis had lost when it began is in the queue again.
--
-- KEYS[1]  the queue
-- ARGV[1]  the epoch's key     ARGV[2]  epoch     ARGV[3]  what stands before one that is not completed yet
-- Returns 1, or 0 where Redis has lost it again meanwhile.
local key, epoch, begun = ARGV[1], ARGV[2], ARGV[3]
local now = redis.call('GET', key)
if now == begun .. epoch then redis.call('SET', key, epoch) end
return (now == epoch or now == begun .. epoch) and 1 or 0
