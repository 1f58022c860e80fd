-- Record how a batch of jobs ended. A job that this worker neither holds nor was the last to hold is left alone.
--
-- KEYS[1]  the queue
-- ARGV[1]  prefix of all other keys     ARGV[2]  channel that wakes idle workers
-- then for each job: id, token, action, the value, ms to keep the result (for again and later: how many tries have
-- failed, and after a space a note on why the job is put back, or nothing), ms until the job is due again
-- Actions: end (the job has ended), again (a try failed, another one follows), back (to its place in the queue, without
-- costing a try), later (due again after the delay, without costing a try)
-- The value is for end the result ('' for none), otherwise the payload
-- Returns for each job 1, or 0 if it is not this worker's any more: another worker holds the job, or has finished it.
--
-- First the jobs' owners are read. Then all keys of the ended jobs are deleted in one call, as most of this script's
-- time goes into its calls. Then the rest is written. Deleting first also makes room for results when memory is full.
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
        id = id, token = token, action = action, value = value, keep = keep, delay = tonumber(delay),
        holder = holder, body = prefix .. 'job:' .. id, retry = prefix .. 'retry:' .. id,
        result = prefix .. 'result:' .. id,
    }
    holders[#holders + 1] = holder
end
if #jobs == 0 then return {} end

local owners = redis.call('MGET', unpack(holders))
local replies, ended, deleted = {}, {}, {}
for n, job in ipairs(jobs) do
    job.owner = owners[n]
    job.held = job.owner and string.sub(job.owner, 1, #job.token) == job.token
    job.ours = job.held
    if not job.owner then
        -- The lease has ended, or is lost. The last claim shows whether another worker has taken the job since. If
        -- Redis has lost the job altogether, no worker runs it now.
        local claim = text(redis.pcall('HGET', started, job.id))
        job.lost = not claim and redis.call('EXISTS', job.body) == 0
        job.ours = job.lost or (claim and string.sub(claim, -#job.token) == job.token)
    end
    if job.ours and job.action == 'end' then
        ended[#ended + 1] = job.id
        for _, key in ipairs({ job.holder, job.body, job.retry }) do deleted[#deleted + 1] = key end
    end
    replies[n] = job.ours and 1 or 0
end

if #ended > 0 then
    redis.call('DEL', unpack(deleted))
    redis.pcall('HDEL', started, unpack(ended))
    redis.call('ZREM', queue, unpack(ended))
    redis.pcall('ZREM', prefix .. 'abort', unpack(ended))
end

local function keep_result(job)
    local keep = tonumber(job.keep)
    if keep > 0 and job.value ~= '' then
        -- If the job is gone because another worker has ended it, that worker's result stays.
        if job.lost then redis.call('SET', job.result, job.value, 'PX', keep, 'NX')
        else redis.call('SET', job.result, job.value, 'PX', keep) end
    end
    if not job.held and redis.call('EXISTS', job.result) == 0 then
        -- A heartbeat may be about to reacquire the lost lease. This tombstone keeps it from bringing the job back.
        redis.call('SET', job.holder, 'ended', 'PX', TOMBSTONE)
    end
    redis.call('PUBLISH', prefix .. 'ended:' .. job.id, '1')
end

local function put_back(job)
    redis.call('DEL', job.holder)
    local tries, note = string.match(job.keep, '^(%d+) ?(.*)$')
    tries = tonumber(tries) or 0
    -- The note takes the place of the claim: no claim is unfinished. It is deleted with the job, or by the next claim.
    if note and note ~= '' then redis.pcall('HSET', started, job.id, string.format('0:%.0f:%s', now, note))
    else redis.pcall('HDEL', started, job.id) end
    if job.lost and redis.call('EXISTS', job.result) == 1 then return end
    -- Redis may have lost the payload since the claim. If it was lost before, the ledger gives it again.
    if job.value ~= '' then redis.call('SET', job.body, job.value, 'NX') end
    local due = now + job.delay
    if job.action == 'again' then
        -- A producer may have given the number of the first try, so more may have failed than are counted.
        local failed = redis.pcall('INCR', job.retry)
        if type(failed) ~= 'number' or failed < tries then
            redis.call('SET', job.retry, string.format('%.0f', math.max(tries, 1)))
        end
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
