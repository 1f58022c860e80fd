-- Record what became of a batch of jobs; each only if this worker still holds it, or nobody does.
--
-- KEYS[1]  the queue
-- ARGV[1]  prefix of all other keys
-- then for each job: id, token, action, result ('' for none), ms to keep the result, ms until it is due again
-- Actions: end (it is over), again (a try failed, another follows), back (to its place in the queue, at no cost),
-- later (due again after the delay, at no cost)
-- Returns for each job 1, or 0 where another worker holds it.
local queue, prefix = KEYS[1], ARGV[1]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local TOMBSTONE, REMEMBER = 5000, 7 * 24 * 60 * 60 * 1000

local replies = {}
for i = 2, #ARGV, 6 do
    local id, token, action, result, keep, delay =
        ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3], tonumber(ARGV[i + 4]), tonumber(ARGV[i + 5])
    local holder, job = prefix .. 'in-progress:' .. id, prefix .. 'job:' .. id
    local owner = redis.pcall('GET', holder)
    if type(owner) == 'string' and string.sub(owner, 1, #token) ~= token then
        replies[#replies + 1] = 0
    else
        local held = type(owner) == 'string'
        redis.call('DEL', holder)
        redis.call('HDEL', prefix .. 'started', id)
        if action == 'end' then
            redis.call('DEL', job, prefix .. 'retry:' .. id)
            redis.call('ZREM', queue, id)
            redis.call('ZREM', prefix .. 'abort', id)
            if keep > 0 and result ~= '' then
                redis.call('SET', prefix .. 'result:' .. id, result, 'PX', keep)
            end
            if not held then
                -- A heartbeat may be on its way to take the lost lease again: it must not bring the job back.
                redis.call('SET', holder, 'ended', 'PX', TOMBSTONE)
            end
            redis.call('PUBLISH', prefix .. 'ended:' .. id, '1')
        elseif redis.call('EXISTS', job) == 1 then
            local due = now + delay
            if action == 'again' then
                redis.pcall('INCR', prefix .. 'retry:' .. id)
                redis.call('PEXPIRE', prefix .. 'retry:' .. id, REMEMBER)
            elseif action == 'back' then
                due = held and string.sub(owner, #token + 2) or now
            end
            redis.call('ZADD', queue, due, id)
        end
        replies[#replies + 1] = 1
    end
end
return replies
