-- Keep the record of a worker for queues in which nothing has happened: what measure.lua writes for one of the others.
--
-- KEYS  the queues. A cluster gets one a call
-- ARGV[1]  id of the worker's process     ARGV[2]  its record     ARGV[3]  ms for which the record is kept
local process, record, kept = ARGV[1], ARGV[2], tonumber(ARGV[3])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local written_at, oldest = string.format('%.0f', now), string.format('%.0f', now - kept)
for _, queue in ipairs(KEYS) do
    local prefix = queue .. ':metrics:'
    local workers = prefix .. 'workers'
    redis.call('SET', prefix .. 'worker:' .. process, record, 'PX', kept)
    redis.call('ZADD', workers, written_at, process)
    redis.call('ZREMRANGEBYSCORE', workers, '-inf', oldest)
    redis.call('PEXPIRE', workers, kept)
end
return 1
