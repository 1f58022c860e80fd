-- Read the counts of some tasks from the latest buckets of a queue.
--
-- KEYS[1]  the queue
-- ARGV[1]  beginning of the keys of the metrics     ARGV[2]  ms of a bucket     ARGV[3]  how many buckets
-- then names of tasks, at least one
-- Returns the number of the last bucket, by the server's clock, and for each bucket, the oldest first, a list: for each
-- task its counts (or false).
local prefix, length, buckets = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local time = redis.call('TIME')
local last = math.floor((time[1] * 1000 + math.floor(time[2] / 1000)) / length)
local names = {}
for i = 4, #ARGV do names[#names + 1] = ARGV[i] end
local reply = { last }
for bucket = last - buckets + 1, last do
    local key = prefix .. ARGV[2] .. ':' .. string.format('%.0f', bucket)
    reply[#reply + 1] = redis.call('HMGET', key, unpack(names))
end
return reply
