-- Remove jobs that wait, with all their keys. A job that runs stays.
--
-- KEYS[1]  the queue
-- ARGV[1]  prefix of all other keys, then the ids
-- Returns the ids of the removed jobs.
local queue, prefix = KEYS[1], ARGV[1]
local removed = {}
for i = 2, #ARGV do
    local id = ARGV[i]
    local holder = redis.pcall('GET', prefix .. 'in-progress:' .. id)
    if (not holder or holder == 'ended') and redis.call('ZREM', queue, id) == 1 then
        redis.call('DEL', prefix .. 'job:' .. id, prefix .. 'retry:' .. id)
        redis.pcall('HDEL', prefix .. 'started', id)
        redis.pcall('ZREM', prefix .. 'abort', id)
        redis.call('PUBLISH', prefix .. 'ended:' .. id, '1')
        removed[#removed + 1] = id
    end
end
return removed
