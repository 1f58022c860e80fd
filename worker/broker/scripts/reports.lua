-- Read the records of the workers of a queue.
--
-- KEYS[1]  the queue
-- ARGV[1]  beginning of the keys of the metrics
-- Returns for each worker the id of its process, the ms since it wrote its record, and the record.
local prefix = ARGV[1]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local reply = {}
local workers = redis.call('ZRANGE', prefix .. 'workers', 0, -1, 'WITHSCORES')
for i = 1, #workers, 2 do
    local record = redis.call('GET', prefix .. 'worker:' .. workers[i])
    if record then reply[#reply + 1] = { workers[i], now - workers[i + 1], record } end
end
return reply
