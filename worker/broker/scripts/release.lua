-- Release the jobs of a worker that has died, so that they are due at once instead of at the end of their leases. Their
-- claims stay recorded: the next claim counts each of them as a crash.
--
-- KEYS[1]  the queue
-- ARGV[1]  prefix of all other keys     ARGV[2]  channel that wakes idle workers
-- then for each job: id, token
-- Returns for each job 1, or 0 if it was not that worker's any more: it is finished, or another worker holds it.
local queue, prefix = KEYS[1], ARGV[1]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local function text(reply)
    return type(reply) == 'string' and reply or false
end

local replies, any = {}, false
for i = 3, #ARGV, 2 do
    local id, token = ARGV[i], ARGV[i + 1]
    local holder = prefix .. 'in-progress:' .. id
    local owner = text(redis.pcall('GET', holder))
    local held = owner and string.sub(owner, 1, #token) == token
    if held then
        redis.call('DEL', holder)
        redis.call('ZADD', queue, now, id)
        any = true
    end
    replies[#replies + 1] = held and 1 or 0
end
if any then redis.call('PUBLISH', ARGV[2], '1') end
return replies
