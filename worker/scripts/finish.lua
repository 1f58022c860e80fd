-- Record what became of a batch of jobs; each only if this worker still holds it, or was the last to hold it.
--
-- KEYS[1]  the queue
-- ARGV[1]  prefix of all other keys     ARGV[2]  channel that wakes idle workers
-- then for each job: id, token, action, the result ('' for none) or, for all but end, the payload, ms to keep the
-- result, ms until it is due again
-- Actions: end (it is over), again (a try failed, another follows), back (to its place in the queue, at no cost),
-- later (due again after the delay, at no cost)
-- Returns for each job 1, or 0 where it is not this worker's any more: another one holds it, or has finished it.
local queue, prefix = KEYS[1], ARGV[1]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local TOMBSTONE, REMEMBER = 5000, 7 * 24 * 60 * 60 * 1000

local function text(reply)
    return type(reply) == 'string' and reply or false
end

local replies, any = {}, false
for i = 3, #ARGV, 6 do
    local id, token, action, value, keep, delay =
        ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3], tonumber(ARGV[i + 4]), tonumber(ARGV[i + 5])
    local holder, job, started = prefix .. 'in-progress:' .. id, prefix .. 'job:' .. id, prefix .. 'started'
    local owner = text(redis.pcall('GET', holder))
    local held = owner and string.sub(owner, 1, #token) == token
    local ours, unknown = held, false
    if not owner then
        -- The lease has ended, or is lost. The last claim tells whether somebody came after us; where Redis has
        -- forgotten the job altogether, nobody runs it now.
        local claim = text(redis.pcall('HGET', started, id))
        unknown = not claim and redis.call('EXISTS', job) == 0
        ours = unknown or (claim and string.sub(claim, -#token) == token)
    end
    if not ours then
        replies[#replies + 1] = 0
    else
        redis.call('DEL', holder)
        redis.pcall('HDEL', started, id)
        if action == 'end' then
            redis.call('DEL', job, prefix .. 'retry:' .. id)
            redis.call('ZREM', queue, id)
            redis.pcall('ZREM', prefix .. 'abort', id)
            local key = prefix .. 'result:' .. id
            if keep > 0 and value ~= '' then
                -- Where the job is forgotten because another worker has ended it, its word came first.
                if unknown then redis.call('SET', key, value, 'PX', keep, 'NX')
                else redis.call('SET', key, value, 'PX', keep) end
            end
            if not held and redis.call('EXISTS', key) == 0 then
                -- A heartbeat may be on its way to take the lost lease again: it must not bring the job back.
                redis.call('SET', holder, 'ended', 'PX', TOMBSTONE)
            end
            redis.call('PUBLISH', prefix .. 'ended:' .. id, '1')
        elseif not (unknown and redis.call('EXISTS', prefix .. 'result:' .. id) == 1) then
            redis.call('SET', job, value, 'NX')  -- Redis may have lost it meanwhile
            local due = now + delay
            if action == 'again' then
                local retry = prefix .. 'retry:' .. id
                if type(redis.pcall('INCR', retry)) ~= 'number' then redis.call('SET', retry, '1') end
                redis.call('PEXPIRE', retry, REMEMBER)
            elseif action == 'back' then
                due = held and string.sub(owner, #token + 2) or now
            end
            redis.call('ZADD', queue, due, id)
            any = true
        end
        replies[#replies + 1] = 1
    end
end
if any then redis.call('PUBLISH', ARGV[2], '1') end
return replies
