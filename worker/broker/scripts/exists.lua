-- Which of these jobs Redis has: with their payload and their place in the queue. A kept result does not count.
--
-- KEYS[1]  the queue
-- ARGV[1]  prefix of all other keys, then the ids
-- Returns for each 1 or 0.
local known = {}
for i = 2, #ARGV do
    local has_payload = redis.call('EXISTS', ARGV[1] .. 'job:' .. ARGV[i]) == 1
    known[#known + 1] = has_payload and redis.call('ZSCORE', KEYS[1], ARGV[i]) and 1 or 0
end
return known
