-- Take leases again that ended or were lost (a failover, a flush) while their jobs ran. Lost jobs are restored too.
--
-- KEYS[1]  the queue
-- ARGV[1]  prefix of all other keys     ARGV[2]  lease in ms
-- then for each job: id, token, score, payload ('' if there was none)
-- Returns for each job 1, or 0 if it is not this worker's any more: another worker holds the job, or has finished it.
local queue, prefix, lease = KEYS[1], ARGV[1], tonumber(ARGV[2])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local function text(reply)
    return type(reply) == 'string' and reply or false
end

local replies = {}
for i = 3, #ARGV, 4 do
    local id, token, score, payload = ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3]
    local job, started = prefix .. 'job:' .. id, prefix .. 'started'
    local claim = text(redis.pcall('HGET', started, id))
    -- The job is ours if no other worker has claimed it since. A job that waits without a claim is a later job of
    -- this id, or was put back by another worker. A result shows that another worker has ended the job.
    local ours
    if claim then ours = string.sub(claim, -#token) == token
    else ours = redis.call('EXISTS', job, prefix .. 'result:' .. id) == 0 end
    local taken = ours
        and redis.call('SET', prefix .. 'in-progress:' .. id, token .. ':' .. score, 'PX', lease, 'NX')
    if taken then
        if payload ~= '' then redis.call('SET', job, payload, 'NX') end
        if not claim then redis.pcall('HSET', started, id, '1:' .. token) end
        redis.call('ZADD', queue, now + lease, id)
    end
    replies[#replies + 1] = taken and 1 or 0
end
return replies
