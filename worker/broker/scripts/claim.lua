-- Take up to n due jobs that no worker runs, from several queues in the order of the keys. The score of a taken job moves
-- to the end of its lease. So the job is not looked at again while it runs, and is due again if its worker dies.
--
-- KEYS  the queues. A cluster keeps each in a slot of its own, and so gets one a call
-- ARGV[1]  token     ARGV[2]  lease in ms     ARGV[3]  n
-- ARGV[4]  how many of them may be suspects: jobs during which workers have died SUSPECT_CRASHES times or more
-- ARGV[5]  the most bytes that a payload may have
-- ARGV[6]  '0' or '1' for each queue. '1': take nothing while the queue has no complete epoch, as Redis may have lost
-- that the queue is paused
-- Returns the time, the due time of the next job (or false), an error (or false), and for each queue of which jobs were
-- taken its number (from 1) and the jobs: id, payload (or false), its score, failed tries, claims that were never finished,
-- when an abort was requested (or false), and ms until its payload expires (0: never). A payload that is too large is not
-- read: its size is returned instead. After ENOUGH bytes no more jobs are taken, so that the reply arrives in time.
-- Of a paused queue only jobs up to a score are taken, and jobs that are to be aborted: see worker/broker/pauses.py. The
-- end of the pause (or false) takes the place of the next due time.
-- An error of one queue does not keep the jobs of the others. It is the reply if no job was taken.
--
-- Reads and writes are batched over many jobs, as most of this script's time goes into its calls. Empty queues have no
-- key: one call finds that out for twenty of them, so that a hundred cost some 20 µs. A queue whose jobs are not due costs
-- a call.
local token, lease, wanted, suspects = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local largest, bytes, taken = tonumber(ARGV[5]), 0, 0
local TOGETHER = 20
local DAY, SKEW, F = 24 * 60 * 60 * 1000, 5 * 60 * 1000, 102  -- the code of 'f'
local MOST_SKIPPED, AT_ONCE, MOST, SUSPECT_CRASHES, LATER, ENOUGH = 1000, 1000, 1000000000, 2, 500, 4 * 1024 * 1024
local MOST_ABORTED = 100
local first_claim = '1:' .. token
local lease_end = string.format('%.0f', now + lease)

-- Keys of a wrong type, from other software, must not stop the queue: an error of `pcall` counts as a missing key.
local function text(reply)
    return type(reply) == 'string' and reply or false
end

local function count(reply)
    local number = tonumber(text(reply) or '') or 0
    return number >= 0 and math.min(number, MOST) or 0
end

local function keys(beginning, ids)
    local names = {}
    for i = 1, #ids do names[i] = beginning .. ids[i] end
    return names
end

-- Whether a stock producer has asked for an expiry (`_expires`), which is to end retries, too. Without it the payload
-- expires a day after the due time. That holds for the first claim: later ones find it without an expiry.
local function is_asked(ttl, score, is_first)
    return ttl > 0 and not (is_first and math.abs(now + ttl - tonumber(score) - DAY) < SKEW)
end

-- The payload, and ms until it expires, or 0.
local function read(job, score, is_first)
    local payload = redis.pcall('GETRANGE', job, 0, largest)  -- a byte more than it may have
    if type(payload) ~= 'string' then
        -- Without the right to read the key this raises: the job has not expired.
        if not string.find(payload.err, 'WRONGTYPE', 1, true) then redis.call('STRLEN', job) end
        return false, 0
    end
    if payload == '' then return redis.call('GET', job), 0 end
    if #payload > largest then return redis.call('STRLEN', job), 0 end
    bytes = bytes + #payload
    -- Tandem's own jobs begin with {"f": and those of stock producers do not.
    if string.byte(payload, 3) ~= F then
        local ttl = redis.call('PTTL', job)
        if is_asked(ttl, score, is_first) then return payload, ttl end
    end
    redis.call('PERSIST', job)  -- a job that has started does not expire any more
    return payload, 0
end

-- Take jobs of one queue, and add them to `found`. Returns the due time of its next job.
local function take(queue, prefix, is_guarded, found)
    local started, abort, paused = prefix .. 'started', prefix .. 'abort', queue .. ':paused'
    -- One call for both keys, as most queues have neither. A key that is named twice counts twice.
    local flags = redis.call('EXISTS', abort, paused, paused)
    local aborts, pause = flags % 2 == 1, flags > 1

    -- Without a complete epoch, Redis has lost its data, and perhaps no worker has restored the pauses yet.
    if is_guarded and not pause then
        pause = string.match(text(redis.pcall('GET', queue .. ':epoch')) or '?', '^%?') == '?'
    end
    local last_score = now
    if pause then last_score = string.match(text(redis.pcall('GET', paused)) or '', '^%d+') or '-inf' end

    local function due_jobs(limit)
        local due = redis.call('ZRANGEBYSCORE', queue, '-inf', last_score, 'WITHSCORES', 'LIMIT', 0, limit)
        if not pause or not aborts or #due > 0 then return due end
        for _, id in ipairs(redis.call('ZRANGE', abort, -MOST_ABORTED, -1)) do
            local score = redis.call('ZSCORE', queue, id)
            if score and tonumber(score) <= now and #due < 2 * limit then
                due[#due + 1] = id
                due[#due + 1] = score
            end
        end
        return due
    end

    local skipped = 0
    while taken < wanted and skipped < MOST_SKIPPED do
        local limit = math.min(wanted - taken, AT_ONCE)
        local due = due_jobs(limit)
        if #due == 0 then break end
        local ids = {}
        for i = 1, #due, 2 do ids[#ids + 1] = due[i] end
        local holders, jobs = keys(prefix .. 'in-progress:', ids), keys(prefix .. 'job:', ids)
        local held = redis.call('MGET', unpack(holders))
        local retries = redis.call('MGET', unpack(keys(prefix .. 'retry:', ids)))
        -- The token of the last claim and the number of unfinished claims. It outlives the lease, until the job finishes.
        local before = redis.pcall('HMGET', started, unpack(ids))
        local scores, claims = {}, {}
        for i, id in ipairs(ids) do
            local next_score, score = lease_end, due[2 * i]
            if not held[i] or held[i] == 'ended' then  -- free, or a tombstone: see finish.lua
                local last = text(before[i])
                local crashes = last and count(string.match(last, '^%d+')) or 0
                local abort_at = aborts and text(redis.pcall('ZSCORE', abort, id))
                -- A stock client's abort first sets the score of a deferred job to 1, and only then writes the abort.
                local is_being_aborted = score == '1' and not abort_at
                if is_being_aborted or (crashes >= SUSPECT_CRASHES and suspects <= 0) then
                    next_score = now + LATER
                else
                    if crashes >= SUSPECT_CRASHES then suspects = suspects - 1 end
                    taken = taken + 1
                    redis.call('SET', holders[i], token .. ':' .. score, 'PX', lease)
                    claims[#claims + 1] = id
                    claims[#claims + 1] = crashes == 0 and first_claim or string.format('%.0f:%s', crashes + 1, token)
                    local tries = count(retries[i])
                    local payload, expires_in = read(jobs[i], score, crashes == 0 and tries == 0)
                    found[#found + 1] = { id, payload, score, tries, crashes, abort_at, expires_in }
                end
            else
                -- The job runs. A lower score, as a stock client's abort sets it, must not start it twice.
                local left = redis.call('PTTL', holders[i])
                if left == -1 then
                    redis.call('PEXPIRE', holders[i], lease)  -- a holder without an end is no worker's: leases end
                else
                    -- A stock worker holds it with '1', and runs it again at or after the score that it has then. So
                    -- its score moves ahead by little: the end of its lease may be minutes away.
                    if held[i] == '1' then left = math.min(left, LATER) end
                    next_score = now + math.max(left, 1)
                end
            end
            scores[#scores + 1] = next_score
            scores[#scores + 1] = id
            if bytes >= ENOUGH then
                wanted = taken
                break
            end
        end
        skipped = skipped + #ids - #claims / 2
        redis.call('ZADD', queue, unpack(scores))
        if #claims > 0 then redis.pcall('HSET', started, unpack(claims)) end
    end
    if pause then
        local left = redis.call('PTTL', paused)
        return left > 0 and now + left
    end
    return redis.call('ZRANGE', queue, 0, 0, 'WITHSCORES')[2]
end

-- The prefix of all other keys of a queue: see worker/broker/keys.py.
local function prefix_of(queue)
    return string.find(queue, '^{[^{}]+}$') and queue .. ':' or 'arq:'
end

local reply, refused, next_due, number = { now, false, false }, false, false, 0
while number < #KEYS do
    if taken >= wanted then
        next_due = now  -- the other queues have not been looked at
        break
    end
    -- Skip the next twenty queues if all are empty.
    while number < #KEYS and number % TOGETHER == 0 and #KEYS > 1 do
        local last = math.min(number + TOGETHER, #KEYS)
        if redis.call('EXISTS', unpack(KEYS, number + 1, last)) > 0 then break end
        number = last
    end
    number = number + 1
    local queue = KEYS[number]
    if not queue then break end
    local first = redis.pcall('ZRANGE', queue, 0, 0, 'WITHSCORES')
    local following = first[2]
    if first.err then
        refused = refused or first.err
    elseif following and tonumber(following) <= now then
        local found = {}
        local is_guarded = string.byte(ARGV[6], number) == 49  -- the code of '1'
        local done, result = pcall(take, queue, prefix_of(queue), is_guarded, found)
        if #found > 0 then
            reply[#reply + 1] = number
            reply[#reply + 1] = found
        end
        following = done and result
        if not done then refused = refused or (type(result) == 'table' and result.err or result) end
    end
    if following and (not next_due or tonumber(following) < next_due) then next_due = tonumber(following) end
end
if refused and #reply == 3 then return { err = refused } end
reply[2], reply[3] = next_due and string.format('%.3f', next_due), refused
return reply
