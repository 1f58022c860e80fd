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
-- First it is read whose the jobs are; then what is left of those that are over goes, in one piece, as the calls are what
-- this costs; then the rest is written. To delete first also lets outcomes in where memory is full.
local queue, prefix = KEYS[1], ARGV[1]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local TOMBSTONE, REMEMBER = 5000, 7 * 24 * 60 * 60 * 1000
local started = prefix .. 'started'

local function text(reply)
    return type(reply) == 'string' and reply or false
end

local jobs, holders = {}, {}
for i = 3, #ARGV, 6 do
    local id, token, action, value, keep, delay = unpack(ARGV, i, i + 5)
    local holder = prefix .. 'in-progress:' .. id
    jobs[#jobs + 1] = {
        id = id, token = token, action = action, value = value, keep = tonumber(keep), delay = tonumber(delay),
        holder = holder, body = prefix .. 'job:' .. id, retry = prefix .. 'retry:' .. id,
        result = prefix .. 'result:' .. id,
    }
    holders[#holders + 1] = holder
end
if #jobs == 0 then return {} end

local owners = redis.call('MGET', unpack(holders))
local replies, over, gone = {}, {}, {}
for n, job in ipairs(jobs) do
    job.owner = owners[n]
    job.held = job.owner and string.sub(job.owner, 1, #job.token) == job.token
    job.ours = job.held
    if not job.owner then
        -- The lease has ended, or is lost. The last claim tells whether somebody came after us; where Redis has
        -- forgotten the job altogether, nobody runs it now.
        local claim = text(redis.pcall('HGET', started, job.id))
        job.forgotten = not claim and redis.call('EXISTS', job.body) == 0
        job.ours = job.forgotten or (claim and string.sub(claim, -#job.token) == job.token)
    end
    if job.ours and job.action == 'end' then
        over[#over + 1] = job.id
        for _, key in ipairs({ job.holder, job.body, job.retry }) do gone[#gone + 1] = key end
    end
    replies[n] = job.ours and 1 or 0
end

if #over > 0 then
    redis.call('DEL', unpack(gone))
    redis.pcall('HDEL', started, unpack(over))
    redis.call('ZREM', queue, unpack(over))
    redis.pcall('ZREM', prefix .. 'abort', unpack(over))
end

local function keep_result(job)
    if job.keep > 0 and job.value ~= '' then
        -- Where the job is forgotten because another worker has ended it, its word came first.
        if job.forgotten then redis.call('SET', job.result, job.value, 'PX', job.keep, 'NX')
        else redis.call('SET', job.result, job.value, 'PX', job.keep) end
    end
    if not job.held and redis.call('EXISTS', job.result) == 0 then
        -- A heartbeat may be on its way to take the lost lease again: it must not bring the job back.
        redis.call('SET', job.holder, 'ended', 'PX', TOMBSTONE)
    end
    redis.call('PUBLISH', prefix .. 'ended:' .. job.id, '1')
end

local function put_back(job)
    redis.call('DEL', job.holder)
    redis.pcall('HDEL', started, job.id)
    if job.forgotten and redis.call('EXISTS', job.result) == 1 then return end
    -- Redis may have lost it meanwhile; or did before the claim, and then the ledger is asked for it again.
    if job.value ~= '' then redis.call('SET', job.body, job.value, 'NX') end
    local due = now + job.delay
    if job.action == 'again' then
        if type(redis.pcall('INCR', job.retry)) ~= 'number' then redis.call('SET', job.retry, '1') end
        redis.call('PEXPIRE', job.retry, REMEMBER)
    elseif job.action == 'back' then
        due = job.held and string.sub(job.owner, #job.token + 2) or now
    end
    redis.call('ZADD', queue, due, job.id)
    return true
end

local any = false
for _, job in ipairs(jobs) do
    if job.ours and job.action == 'end' then keep_result(job)
    elseif job.ours then any = put_back(job) or any end
end
if any then redis.call('PUBLISH', ARGV[2], '1') end
return replies
