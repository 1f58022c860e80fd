-- Renew leases, and read requests to abort.
--
-- KEYS[1]  the queue
-- ARGV[1]  prefix of all other keys     ARGV[2]  lease in ms
-- then for each job: id, token
-- Returns for each job: 1 renewed, 0 no worker holds it, -1 another worker holds it; and when an abort was requested
-- (or false).
local queue, prefix, lease = KEYS[1], ARGV[1], tonumber(ARGV[2])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local FORGET = 7 * 24 * 60 * 60 * 1000

local function text(reply)
    return type(reply) == 'string' and reply or false
end

-- A stock client leaves an entry for each abort of an unknown id, so old entries are deleted.
local aborts = redis.call('EXISTS', prefix .. 'abort') == 1
if aborts then redis.pcall('ZREMRANGEBYSCORE', prefix .. 'abort', '-inf', now - FORGET) end

local replies = {}
for i = 3, #ARGV, 2 do
    local id, token = ARGV[i], ARGV[i + 1]
    local holder = prefix .. 'in-progress:' .. id
    local owner = text(redis.pcall('GET', holder))
    local state = 0
    if owner then
        state = -1
        if string.sub(owner, 1, #token) == token then
            redis.call('PEXPIRE', holder, lease)
            redis.call('ZADD', queue, now + lease, id)
            state = 1
        end
    end
    replies[#replies + 1] = state
    replies[#replies + 1] = aborts and text(redis.pcall('ZSCORE', prefix .. 'abort', id))
end
return replies
