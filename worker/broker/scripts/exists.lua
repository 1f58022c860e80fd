-- Check for each of these jobs that Redis has its payload and its place in the queue. A kept result does not count.
--
-- KEYS[1]  the queue
-- ARGV[1]  prefix of all other keys, then the ids
-- Returns for each job 1 or 0.
local found = {}
for i = 2, #ARGV do
    local has_payload = redis.call('EXISTS', ARGV[1] .. 'job:' .. ARGV[i]) == 1
    found[#found + 1] = has_payload and redis.call('ZSCORE', KEYS[1], ARGV[i]) and 1 or 0
end
return found
