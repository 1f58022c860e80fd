-- Record what became of a batch of jobs; each only if this worker still holds it, or was the last to hold it.
--
-- KEYS[1]  the queue
-- ARGV[1]  prefix of all other keys     ARGV[2]  channel that wakes idle workers
-- then for each job: id, token, action, the result ('' for none) or, for all but end, the payload, ms to keep the
-- result, ms until it is due again
-- Actions: end (it is over), again (a try failed, another follows), back (to its place in the queue, at no cost),
-- later (due again after the delay, at no cost)
-- Returns for each job 1, or 0 where it is not this worker's any more: another one holds it, or has finished it.
--
-- What is left of jobs that are over goes in one piece: the calls are what this costs.
local queue, prefix = KEYS[1], ARGV[1]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local TOMBSTONE, REMEMBER, FIELDS = 5000, 7 * 24 * 60 * 60 * 1000, 6
local started, abort = prefix .. 'started', prefix .. 'abort'

local function text(reply)
    return type(reply) == 'string' and reply or false
end

local over, gone = {}, {}
local function bury()
    if #over == 0 then return end
    redis.call('DEL', unpack(gone))
    redis.pcall('HDEL', started, unpack(over))
    redis.call('ZREM', queue, unpack(over))
    redis.pcall('ZREM', abort, unpack(over))
    over, gone = {}, {}
end

local holders = {}
for i = 3, #ARGV, FIELDS do holders[#holders + 1] = prefix .. 'in-progress:' .. ARGV[i] end
local owners = redis.call('MGET', unpack(holders))
local replies, any = {}, false
for n, holder in ipairs(holders) do
    local i = 3 + (n - 1) * FIELDS
    local id, token, action, value, keep, delay =
        ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3], tonumber(ARGV[i + 4]), tonumber(ARGV[i + 5])
    local job, retry, result = prefix .. 'job:' .. id, prefix .. 'retry:' .. id, prefix .. 'result:' .. id
    local owner = owners[n]
    local held = owner and string.sub(owner, 1, #token) == token
    local ours, unknown = held, false
    if not owner then
        -- The lease has ended, or is lost. The last claim tells whether somebody came after us; where Redis has
        -- forgotten the job altogether, nobody runs it now.
        local claim = text(redis.pcall('HGET', started, id))
        unknown = not claim and redis.call('EXISTS', job) == 0
        ours = unknown or (claim and string.sub(claim, -#token) == token)
    end
    replies[n] = ours and 1 or 0
    if ours and action == 'end' then
        over[#over + 1] = id
        for _, key in ipairs({ holder, job, retry }) do gone[#gone + 1] = key end
        if not held then bury() end  -- before the tombstone
        if keep > 0 and value ~= '' then
            -- Where the job is forgotten because another worker has ended it, its word came first.
            if unknown then redis.call('SET', result, value, 'PX', keep, 'NX')
            else redis.call('SET', result, value, 'PX', keep) end
        end
        if not held and redis.call('EXISTS', result) == 0 then
            -- A heartbeat may be on its way to take the lost lease again: it must not bring the job back.
            redis.call('SET', holder, 'ended', 'PX', TOMBSTONE)
        end
        redis.call('PUBLISH', prefix .. 'ended:' .. id, '1')
    elseif ours then
        redis.call('DEL', holder)
        redis.pcall('HDEL', started, id)
        if not (unknown and redis.call('EXISTS', result) == 1) then
            redis.call('SET', job, value, 'NX')  -- Redis may have lost it meanwhile
            local due = now + delay
            if action == 'again' then
                if type(redis.pcall('INCR', retry)) ~= 'number' then redis.call('SET', retry, '1') end
                redis.call('PEXPIRE', retry, REMEMBER)
            elseif action == 'back' then
                due = held and string.sub(owner, #token + 2) or now
            end
            redis.call('ZADD', queue, due, id)
            any = true
        end
    end
end
bury()
if any then redis.call('PUBLISH', ARGV[2], '1') end
return replies
